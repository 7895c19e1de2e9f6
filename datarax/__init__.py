"""datarax."""
