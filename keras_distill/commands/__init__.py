"""The command line `keras-distill`, one file per command."""
