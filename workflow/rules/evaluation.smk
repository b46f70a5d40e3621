rule evaluate:
    input:
        unpack(arm_inputs("evaluate")),
    output:
        manifest=report(
            RUN / "evaluation" / "manifest.json",
            caption="../report/evaluation.rst",
            category="Evaluations",
            labels={"model": "{arm}", "seed": "{seed}"},
        ),
    log:
        RUN / "evaluation" / "evaluate.log",
    benchmark:
        RUN / "evaluation" / "evaluate.benchmark.jsonl"
    resources:
        gpu=1,
        mem_mb=memory(MODEL_MB),
        runtime=6 * 60,
        cpus_per_task=CPUS_PER_MODEL,
    params:
        spec=arm_params("evaluate"),
        inputs=input_options,
    shell:
        "python -m kava.stages.evaluate --spec {params.spec:q} {params.inputs} --output {output.manifest:q}"
        " > {log:q} 2>&1"


for role in PLAN.references:
    reference = PLAN.reference(role)

    rule:
        name:
            f"evaluate_{role}"
        input:
            **{name: ancient(path) for name, path in reference.inputs.items()},
        output:
            manifest=report(
                reference.output,
                caption="../report/evaluation.rst",
                category="Evaluations",
                labels={
                    "model": {"student_base": "base student"}.get(role, role),
                    "seed": "–",
                },
            ),
        log:
            reference.output.with_name("evaluate.log"),
        benchmark:
            reference.output.with_name("evaluate.benchmark.jsonl")
        # Before any student is trained: a teacher that answers nothing is known at once.
        priority: 10
        resources:
            gpu=1,
            mem_mb=memory(MODEL_MB),
            runtime=6 * 60,
            cpus_per_task=CPUS_PER_MODEL,
        params:
            spec=job_params(reference),
            inputs=input_options,
        shell:
            "python -m kava.stages.evaluate --spec {params.spec:q} {params.inputs} --output {output.manifest:q}"
            " > {log:q} 2>&1"


# It also writes results/<experiment>/record.yaml, which is no output: Snakemake has no metadata of that file while it is
# not there, and would then not see that another experiment's report is to be made.
rule report:
    input:
        **{
            name: (
                ancient(path)
                if name in ("tokens", "store", "bench", "teacher", "student_base")
                or name.startswith("reference/")
                else path
            )
            for name, path in PLAN.report.inputs.items()
        },
    output:
        html=report(
            PLAN.report.output,
            caption="../report/ab_report.rst",
            category="A/B",
            labels={"experiment": PLAN.config.experiment, "file": "page"},
        ),
        json=report(
            PLAN.report.output.with_suffix(".json"),
            caption="../report/ab_report.rst",
            category="A/B",
            labels={"experiment": PLAN.config.experiment, "file": "numbers"},
        ),
    log:
        PLAN.report.output.with_name("ab_report.log"),
    benchmark:
        PLAN.report.output.with_name("ab_report.benchmark.jsonl")
    localrule: True
    resources:
        mem_mb=memory(TEXT_MB),
        runtime=60,
        cpus_per_task=1,
    params:
        spec=job_params(PLAN.report),
        inputs=input_options,
    shell:
        "python -m kava.stages.report --spec {params.spec:q} {params.inputs} --output {output.html:q}"
        " > {log:q} 2>&1"
