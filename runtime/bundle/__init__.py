"""What is written on disk. Knows no device and no inference library."""

from runtime.bundle.reader import Bundle as Bundle
from runtime.bundle.reader import hash_file as hash_file
from runtime.bundle.reader import open_bundle as open_bundle
from runtime.bundle.reader import read_manifest as read_manifest
from runtime.bundle.reader import write_manifest as write_manifest
