"""`python -m nas`."""

from nas.cli.app import main

if __name__ == "__main__":
    main()
