"""Halters: what they see, what they are fitted to, and the stage that gives a checkpoint one."""
