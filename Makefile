.PHONY: build
build:
	.venv/bin/pip install -q -e .
