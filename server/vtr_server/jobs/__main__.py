"""``python -m vtr_server.jobs``: the job service, as ``vtr search serve`` starts it."""

from vtr_server.jobs.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
