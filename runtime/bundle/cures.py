"""What to do about a bundle that can't be used: said in many places, and the same in C++."""

EXPORT_AGAIN = "export the bundle again"
COPY_AGAIN = "copy or export the bundle again"
UNREADABLE = "make it readable, or give another copy of the bundle"
