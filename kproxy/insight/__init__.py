"""They look and compare, and never change anything."""
