"""The offline search as a service: jobs over HTTP, each a folder and one process at a time.

``app`` has the routes, ``protocol`` their models, ``sources`` what a job may read, ``store`` the
job folders, ``runner`` the processes, ``guard`` what keeps each from outliving the service,
``events`` the stream of a job's events, ``results`` schedules and reports, ``cli`` the command line. Imports neither torch nor vllm, nor the search: it starts the
search.
"""
