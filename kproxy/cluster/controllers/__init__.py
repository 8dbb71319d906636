"""Controllers, one file each; every one is a client of the API like any other program."""
