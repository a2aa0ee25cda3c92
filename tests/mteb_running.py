"""MTEB's retrieval tasks with data made in a test, and the scores that MTEB gives."""

LANGUAGES = {"default": ["eng-Latn"], "en": ["eng-Latn"], "de": ["deu-Latn"]}


def made_task(name, subsets, *, split="test", prompt=None, top_ranked=None):
    """A task that is none of ours.

    `subsets` maps "default", or each language, to rows of documents (id, title, text), rows of queries (id, text and
    perhaps instruction) and the judgements {query: {document: relevance}}.
    """
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    class MadeTask(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name=name, dataset={"path": "tests/made", "revision": "1"}, description="made here", type="Retrieval",
            category="t2t", modalities=["text"], eval_splits=[split], main_score="ndcg_at_10", prompt=prompt,
            eval_langs=LANGUAGES["default"] if "default" in subsets else {each: LANGUAGES[each] for each in subsets},
        )  # fmt: skip

        def load_data(self, num_proc=None, **keywords):
            self.dataset = {
                subset: {
                    split: {
                        "corpus": Dataset.from_list(documents),
                        "queries": Dataset.from_list(queries),
                        "relevant_docs": dict(relevant),
                        "top_ranked": top_ranked,
                    }
                }
                for subset, (documents, queries, relevant) in subsets.items()
            }
            self.data_loaded = True

    return MadeTask()


def mteb_scores(model, task, cache=None):
    """The score dictionary of the task's one split (and subset)."""
    import mteb

    result = mteb.evaluate(model, task, cache=cache, co2_tracker=False, show_progress_bar=False)
    (scores,) = result.task_results[0].scores.values()
    return scores[0]
