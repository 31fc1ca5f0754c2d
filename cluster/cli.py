"""The command ``zapis``. Every command is a few lines here; what it does is in the module it names.

Exit codes: 0 done, 1 it failed or (``verify``) there are differences, 2 a setting or an argument is wrong. A failure
that was expected is one line on standard error; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from actors.logs import configure_logging
from cluster.data_directory import make_password, read_runtime
from cluster.settings import OperatorError, Settings, SettingsError, describe_settings, read_settings, variable

app = typer.Typer(
    help="An electronic doctor-appointment server. Every setting is an environment variable: see `zapis settings`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

CONNECT_TIMEOUT_S = 3.0

DataDir = Annotated[Path | None, typer.Option(help="The data directory of `up` [default: .zapis]", show_default=False)]


@app.command()
def up(
    demo: Annotated[bool | None, typer.Option("--demo/--no-demo", help="Load the demo clinic.")] = None,
    host: Annotated[str | None, typer.Option(help="The address to serve on [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="The port to serve on [default: 8000]")] = None,
    data_dir: DataDir = None,
) -> None:
    """Start whatever is not given by URL (PostgreSQL, Valkey, Ray), migrate, and serve until Ctrl-C."""
    settings = _settings(demo=demo, host=host, port=port, data_dir=data_dir)
    if settings.master_key is not None or settings.master_key_file is not None:
        settings.master_key_bytes()
    _check_database(settings)
    _check_ray(settings)
    from cluster.up import up

    up(settings)


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="The address to serve on [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="The port to serve on [default: 8000]")] = None,
    descriptor: Annotated[int | None, typer.Option(hidden=True, help="A listening socket that was inherited.")] = None,
) -> None:
    """Serve the API on servers that run elsewhere."""
    settings = _settings(host=host, port=port).require("database_url", "redis_url", "ray_address")
    settings.master_key_bytes()
    _check_ray(settings)
    from cluster.serve import serve_descriptor

    raise typer.Exit(serve_descriptor(settings, descriptor))


@app.command()
def migrate(data_dir: DataDir = None) -> None:
    """Bring the database's schema to the newest revision."""
    settings = _needing(data_dir, "database_url")
    _check_database(settings)
    from persistence.database import migrate

    assert settings.database_url is not None
    asyncio.run(migrate(settings.database_url))


@app.command("create-admin")
def create_admin(
    login: Annotated[str | None, typer.Option(help="The login [default: ZAPIS_ADMIN_LOGIN]")] = None,
    data_dir: DataDir = None,
) -> None:
    """Create an administrator; the password comes from ZAPIS_ADMIN_PASSWORD, or is asked for."""
    settings = _settings(admin_login=login, data_dir=data_dir)
    password = settings.admin_password or typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    _run_of_api("api.accounts.create_admin", settings.admin_login, settings=settings, admin_password=password)


@app.command("rotate-keys")
def rotate_keys(data_dir: DataDir = None) -> None:
    """Sign access tokens with a new key from now on; the old one verifies until its last token has expired."""
    _run_of_api("api.accounts.rotate_keys", settings=_settings(data_dir=data_dir))


@app.command()
def load(
    clinic: Annotated[Path, typer.Argument(help="The clinic file.", exists=True, dir_okay=False)],
    url: Annotated[str | None, typer.Option(help="Where zapis serves [default: what `up` started]")] = None,
    data_dir: DataDir = None,
) -> None:
    """Load a whole clinic from a file: checked whole first, every error told with its place."""
    settings = _needing(data_dir, "admin_password")
    runtime = read_runtime(settings.data_dir)
    url = url or (runtime.url if runtime is not None else None)
    if url is None:
        raise SettingsError(f"nothing runs on {variable('data_dir')}={settings.data_dir}: give --url")
    from cluster.clinic import BadClinic, read
    from cluster.loader import load

    try:
        content = read(clinic, today=datetime.now().astimezone().date())
    except BadClinic as bad:
        typer.echo(str(bad), err=True)
        raise typer.Exit(1) from None
    password = settings.account_password or make_password()
    report = asyncio.run(
        load(
            content,
            url=url,
            admin_login=settings.admin_login,
            admin_password=settings.admin_password or "",
            account_password=password,
            progress=lambda line: typer.echo(line, err=True),
        )
    )
    for line in report.lines():
        typer.echo(line)
    if settings.account_password is None and report.doctors.made + report.patients.made:
        typer.echo(f"new accounts have the password {password}: set {variable('account_password')} to load again")
    if report.refused:
        raise typer.Exit(1)


@app.command()
def status(data_dir: DataDir = None) -> None:
    """Show nodes, calendar actors with active calendars and backlog, and how late notifiers are."""
    settings = _needing(data_dir, "ray_address")
    from cluster.operate import status

    for line in status(settings):
        typer.echo(line)


@app.command()
def drain(data_dir: DataDir = None) -> None:
    """Have the calendar actors commit what they have decided, and end them: for before Ray is stopped."""
    settings = _needing(data_dir, "ray_address", "database_url")
    from cluster.operate import drain

    drain(settings)


@app.command()
def verify(data_dir: DataDir = None) -> None:
    """Replay the journal and compare it with slots, holds, appointments and outbox."""
    settings = _needing(data_dir, "database_url")
    _check_database(settings)
    from persistence.verify import verify as compare

    assert settings.database_url is not None
    report = asyncio.run(compare(settings.database_url))
    for difference in report.differences:
        typer.echo(difference)
    if report.unlisted:
        typer.echo(f"and {report.unlisted} more")
    if not report.clean:
        raise typer.Exit(1)
    typer.echo(f"clean: {report.calendars} calendars, {report.events} events")


@app.command("settings")
def show_settings() -> None:
    """List every setting, its default and its meaning."""
    rows = list(describe_settings())
    width = max(len(name) for name, _, _ in rows)
    default_width = max(len(default) for _, default, _ in rows)
    for name, default, meaning in rows:
        typer.echo(f"{name:{width}}  {default:{default_width}}  {meaning}")
    typer.echo("\n0 in any limit: none. What a process has room for is at least 1.")


def main() -> None:
    """The entry point of the command."""
    try:
        app()
    except OperatorError as error:
        typer.echo(f"zapis: {error}", err=True)
        sys.exit(error.exit_code)


def _settings(**given: object) -> Settings:
    settings = read_settings(**given)
    configure_logging(settings.log_level, settings.log_format)
    return settings


def _needing(data_dir: Path | None, *names: str) -> Settings:
    settings = _running(_settings(data_dir=data_dir))
    for name in names:
        if getattr(settings, name) is None:
            raise SettingsError(f"{variable(name)} is missing, and no `zapis up` runs on {settings.data_dir}")
    return settings


def _run_of_api(module: str, *arguments: str, settings: Settings, **given: str) -> NoReturn:
    """Run a module of ``api`` on the database, and end with its exit code.

    By its name, not by an import: ``api`` is built on this package.
    """
    running = _running(settings).require("database_url")
    given["database_url"] = running.database_url or ""
    if running.master_key_file is not None:
        given["master_key_file"] = str(running.master_key_file)
    environment = os.environ | {variable(name): value for name, value in given.items()}
    command = [sys.executable, "-P", "-m", module, *arguments]
    raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)


def _check_database(settings: Settings) -> None:
    """That PostgreSQL answers at its URL, if one is given: said in one line, not by whoever needs it first."""
    from persistence.database import DatabaseUnreachable, check_reachable

    if settings.database_url is None:
        return
    try:
        asyncio.run(check_reachable(settings.database_url))
    except DatabaseUnreachable as error:
        raise SettingsError(f"{variable('database_url')}: {error}") from None


def _check_ray(settings: Settings) -> None:
    """That somebody listens at Ray's address, if one is given as host and port: Ray itself would try for a minute."""
    host, _, port = (settings.ray_address or "").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingsError(f"{variable('ray_address')}: {settings.ray_address}: {reason.lower()}") from None


def _running(settings: Settings) -> Settings:
    """The settings, where they say nothing completed by what `up` runs on their data directory now."""
    runtime = read_runtime(settings.data_dir)
    if runtime is None:
        return settings
    os.environ.update(runtime.environment)
    given = settings.model_dump(exclude_unset=True)
    return read_settings(**runtime.settings | given)


if __name__ == "__main__":
    main()
