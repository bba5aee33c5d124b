"""``/metrics``: the job and the sidecar itself, for Prometheus and whatever reads its format.

``job_metrics`` turns the job view and open verdicts into series, ``self_metrics`` what the sidecar
counts about itself; ``exposition`` collects both and writes the text. The number of series has a
bound, and what did not fit is a series too. Names are OpenTelemetry names in Prometheus spelling
(``families``); ``docs/metrics.md`` lists them.
"""
