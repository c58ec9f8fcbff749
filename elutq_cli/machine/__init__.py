"""What the machine is and has: the only package that asks the operating system for it.

One file a concern, with what Linux, macOS and Windows say of it; ``apple`` and ``windows`` are the doors to the calls
that Python's own library does not have. What a file that is written asks of a file system is in
``elutq_formats.file_system``.
"""
