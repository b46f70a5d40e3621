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
