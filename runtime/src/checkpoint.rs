//! Checkpoint folders, written so that a crash leaves the old one or the new one.
