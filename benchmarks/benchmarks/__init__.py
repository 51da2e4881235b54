"""The suite that asv measures, commit by commit."""
