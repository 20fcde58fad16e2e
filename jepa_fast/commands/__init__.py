"""The command line: `jepa-fast train | probe | bench | codegen | doctor`."""
