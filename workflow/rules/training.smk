rule pretrain:
    input:
        unpack(arm_inputs("pretrain")),
    output:
        manifest=RUN / "projector" / "manifest.json",
    log:
        RUN / "projector" / "pretrain.log",
    benchmark:
        RUN / "projector" / "pretrain.benchmark.jsonl"
    resources:
        gpu=arm_gpus("pretrain"),
        mem_mb=memory(MODEL_MB, arm_gpus("pretrain")),
        runtime=12 * 60,
        cpus_per_task=cpus(arm_gpus("pretrain")),
    params:
        spec=arm_params("pretrain"),
        inputs=input_options,
    shell:
        "python -m kava.stages.pretrain --spec {params.spec:q} {params.inputs} --output {output.manifest:q}"
        " > {log:q} 2>&1"


rule distill:
    input:
        unpack(arm_inputs("distill")),
    output:
        manifest=report(
            RUN / "student" / "manifest.json",
            caption="../report/distill.rst",
            category="Training",
            labels={"arm": "{arm}", "seed": "{seed}"},
        ),
    log:
        RUN / "student" / "distill.log",
    benchmark:
        RUN / "student" / "distill.benchmark.jsonl"
    resources:
        gpu=arm_gpus("distill"),
        mem_mb=memory(MODEL_MB, arm_gpus("distill")),
        runtime=24 * 60,
        cpus_per_task=cpus(arm_gpus("distill")),
    params:
        spec=arm_params("distill"),
        inputs=input_options,
    shell:
        "python -m kava.stages.distill --spec {params.spec:q} {params.inputs} --output {output.manifest:q}"
        " > {log:q} 2>&1"


# Only where the metrics have changed since a finished student was measured: then the report asks for it.
rule measure:
    input:
        unpack(arm_inputs("measure")),
    output:
        alignment=RUN / "student" / "alignment.json",
    log:
        RUN / "student" / "measure.log",
    benchmark:
        RUN / "student" / "measure.benchmark.jsonl"
    resources:
        gpu=1,
        mem_mb=memory(MODEL_MB),
        runtime=60,
        cpus_per_task=CPUS_PER_MODEL,
    params:
        spec=arm_params("measure"),
        inputs=input_options,
    shell:
        "python -m kava.stages.measure --spec {params.spec:q} {params.inputs} --output {output.alignment:q}"
        " > {log:q} 2>&1"
