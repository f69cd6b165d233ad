"""Export for serving, one file per format, and one way to check them all."""
