"""Command-line programs: parsers, launching, errors in one line, the doctor."""
