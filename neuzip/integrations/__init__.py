"""Other libraries: each module is for one of them, and imported only by who uses it."""
