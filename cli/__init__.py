"""The command line: parses, calls one function of the other rooms, prints."""
