"""Tools of the command line; each is a program."""
