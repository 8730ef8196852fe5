"""Directories that are whole or not there: standard library only, under every other room."""
