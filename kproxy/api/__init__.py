"""Kubernetes objects as values: decode, default, validate.

Law: nothing here opens a file, a socket or a process. Text and dictionaries in, values or findings out.
"""
