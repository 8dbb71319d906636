"""Where plans go. A backend encodes; it decides nothing."""
