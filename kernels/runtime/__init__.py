"""What every op's room stands on: implementation choice, native library, launches, code generation."""
