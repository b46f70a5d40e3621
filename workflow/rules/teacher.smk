if PLAN.write:

    rule write:
        output:
            manifest=PLAN.write.output,
        log:
            PLAN.write.output.with_name("write.log"),
        benchmark:
            PLAN.write.output.with_name("write.benchmark.jsonl")
        resources:
            gpu=1,
            mem_mb=memory(MODEL_MB),
            runtime=24 * 60,
            cpus_per_task=CPUS_PER_MODEL,
        params:
            spec=job_params(PLAN.write),
        shell:
            "python -m kava.stages.write --spec {params.spec:q} --output {output.manifest:q} > {log:q} 2>&1"


rule tokenize:
    input:
        **{name: ancient(path) for name, path in PLAN.tokenize.inputs.items()},
    output:
        manifest=PLAN.tokenize.output,
    log:
        PLAN.tokenize.output.with_name("tokenize.log"),
    benchmark:
        PLAN.tokenize.output.with_name("tokenize.benchmark.jsonl")
    resources:
        mem_mb=memory(TEXT_MB),
        runtime=60,
        cpus_per_task=1,
    params:
        spec=job_params(PLAN.tokenize),
        inputs=input_options,
    shell:
        "python -m kava.stages.tokenize --spec {params.spec:q} {params.inputs} --output {output.manifest:q}"
        " > {log:q} 2>&1"


rule extract_part:
    input:
        tokens=ancient(PLAN.extract.inputs["tokens"]),
    output:
        marker=temp(PLAN.extract_part("{part}").output),
    log:
        PLAN.extract_part("{part}").output.with_suffix(".log"),
    wildcard_constraints:
        part=r"\d+",
    resources:
        gpu=1,
        mem_mb=memory(MODEL_MB),
        runtime=12 * 60,
        cpus_per_task=CPUS_PER_MODEL,
    params:
        spec=job_params(PLAN.extract),
        inputs=input_options,
        parts=PLAN.config.extract_jobs,
    shell:
        "python -m kava.stages.extract --spec {params.spec:q} {params.inputs} --part {wildcards.part}/{params.parts}"
        " --output {output.marker:q} > {log:q} 2>&1"


rule extract:
    input:
        tokens=ancient(PLAN.extract.inputs["tokens"]),
        parts=extract_parts(),
    output:
        manifest=report(
            PLAN.extract.output,
            caption="../report/extract.rst",
            category="Teacher KV",
            labels={"file": "manifest of the store"},
        ),
    log:
        PLAN.extract.output.with_name("extract.log"),
    benchmark:
        PLAN.extract.output.with_name("extract.benchmark.jsonl")
    resources:
        gpu=1,
        mem_mb=memory(MODEL_MB),
        runtime=12 * 60,
        cpus_per_task=CPUS_PER_MODEL,
    params:
        spec=job_params(PLAN.extract),
        inputs=input_options,
    shell:
        "python -m kava.stages.extract --spec {params.spec:q} {params.inputs} --output {output.manifest:q}"
        " > {log:q} 2>&1"


rule bench_store:
    input:
        tokens=ancient(PLAN.bench.inputs["tokens"]),
    output:
        figures=report(
            PLAN.bench.output,
            caption="../report/bench_store.rst",
            category="Teacher KV",
            labels={"file": "size and fidelity of every codec"},
        ),
    log:
        PLAN.bench.output.with_name("bench_store.log"),
    benchmark:
        PLAN.bench.output.with_name("bench_store.benchmark.jsonl")
    resources:
        gpu=1,
        mem_mb=memory(MODEL_MB),
        runtime=2 * 60,
        cpus_per_task=CPUS_PER_MODEL,
    params:
        spec=job_params(PLAN.bench),
        inputs=input_options,
    shell:
        "python -m kava.stages.bench_store --spec {params.spec:q} {params.inputs} --output {output.figures:q}"
        " > {log:q} 2>&1"
