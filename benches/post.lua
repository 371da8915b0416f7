-- The small call of the comparison: see rig.py.
wrk.method = "POST"
wrk.body = os.getenv("BENCH_BODY")
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Basic dXNlcjpwYXNz"
wrk.headers["User-Agent"] = "wrk"
