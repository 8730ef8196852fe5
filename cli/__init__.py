"""The command line `ouro`: one file a command; each body parses, makes one call, prints."""
