//! Safetensors, read by memory map and written atomically.
