"""How files of each kind begin."""

ZIP = b"PK\x03\x04"
PICKLE = b"\x80"
NUMPY = b"\x93NUMPY"
GGUF = b"GGUF"
ONNX = b"\x08"
