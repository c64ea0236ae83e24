;; Grows its memory page by page until refused, then ends with the number of
;; pages it got, at most 125 (the largest exit code every host passes on).
(module
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (block $refused
      (loop $again
        (br_if $refused (i32.eq (memory.grow (i32.const 1)) (i32.const -1)))
        (br_if $again (i32.lt_u (memory.size) (i32.const 125)))))
    (call $proc_exit (memory.size))))
