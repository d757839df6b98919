"""Command-line programs: parsers, processes, errors in one line, and the doctor."""
