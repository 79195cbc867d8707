"""The command line: the only room that prints or exits. `compress` starts `main`."""

from compressor.cli import evidence as evidence
from compressor.cli import verbs as verbs
from compressor.cli.app import app as app
from compressor.cli.app import main as main
