"""`python -m lasa`, for launchers that start a module."""

from lasa.cli import main

if __name__ == "__main__":
    main()
