"""``python -m server.jobs``: the job service, as ``vtr search serve`` starts it."""

from server.jobs.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
