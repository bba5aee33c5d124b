"""The hang detector: nothing of the job moves any more. Who never entered what the others wait in?

From first to last; each module imports only what stands before it:

1. What is known: ``operations`` (what their names mean), ``last_seen`` (stacks and processes),
   ``readings`` (which facts are good enough), ``positions`` (how far each member of each group
   has come), ``messages`` (unfinished sends and receives).
2. Who waits for whom: ``nodes`` (the operation each rank waits in), ``edges`` (who blocks it),
   ``components`` and ``roots`` (what the waits come down to), ``head`` (one operation, written
   out), ``wait_graph`` (all of it).
3. Why: ``place_evidence`` and ``whereabouts`` (what a rank does instead), ``scene`` (the job as
   one look finds it), ``history``, ``mismatch`` and ``waiting_order`` (who departs from the
   others), ``diagnosis`` (one cause), ``judge_ranks``, ``judge_knots``, ``judge_quiet``, and
   ``diagnose``, which asks them.
4. What is told: ``gaps`` (what was not seen), ``words`` (the sentences), ``report`` (the verdict).
5. When: ``detector`` (suspicion, evidence, verdict).
"""

from tracecore_sidecar.detectors.hang.detector import HangDetector, HangSettings, HangState

__all__ = ["HangDetector", "HangSettings", "HangState"]
