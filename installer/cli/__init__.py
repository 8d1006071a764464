"""The command line `moactl`."""
