"""`python -m samprior.cli`, which torchrun can start: the same as `samprior`."""

from samprior.cli.main import main

main()
