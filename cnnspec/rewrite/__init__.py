"""Change the text of a spec: apply fixes, set values."""
