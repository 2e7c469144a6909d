import sys

from saekern.cli import main

sys.exit(main())
