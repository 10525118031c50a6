"""The medtune command, with the embedded servers."""
