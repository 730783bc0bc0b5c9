"""The `neuzip` command: it parses arguments, shows progress and presents what the library reports."""
