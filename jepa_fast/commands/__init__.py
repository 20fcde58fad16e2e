"""The command line: `jepa-fast train | bench | codegen | doctor`."""
