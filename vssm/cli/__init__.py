"""The command line: parses, calls, prints. Nobody imports it but the entry point."""
