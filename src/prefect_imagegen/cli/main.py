"""The command `prefect-imagegen`: its subcommands, and how the process ends. See README for options and exit codes.

The modules of commands hold click's declarations and import what does the work inside their functions: help, usage
errors and shell completion load neither pyarrow nor an HTTP client nor Prefect. tests/cli/test_light.py guards that.
"""

import sys
from copy import copy
from typing import NoReturn

import click

from prefect_imagegen.app.running.result import RunResult
from prefect_imagegen.cli import generate, maintenance
from prefect_imagegen.cli.exit import CommandExit, print_json
from prefect_imagegen.cli.serve import serve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="prefect-imagegen")
def cli() -> None:
    """Turn a table of prompts into images and metadata in object storage, and never pay for an image twice."""


for command in (*generate.COMMANDS, serve, *maintenance.COMMANDS):
    cli.add_command(command)
for old_name, command in maintenance.OLD_NAMES.items():
    alias = copy(command)
    alias.hidden = True
    cli.add_command(alias, old_name)


def main() -> NoReturn:
    """Run the command line; the process ends with one of `app.running.result.EXIT_CODES`."""
    try:
        cli.main(standalone_mode=False, prog_name="prefect-imagegen")
    except CommandExit as command_exit:
        sys.exit(command_exit.code)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.ClickException as error:
        error.show()
        if "--json" in sys.argv:
            print_json(RunResult(None, "").as_dict())
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(3)
    sys.exit(0)


if __name__ == "__main__":
    main()
