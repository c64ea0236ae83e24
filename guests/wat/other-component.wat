;; A component that is neither a command nor an http handler.
(component
  (core module $code (func (export "f") (result i32) (i32.const 7)))
  (core instance $run (instantiate $code))
  (func (export "seven") (result u32) (canon lift (core func $run "f"))))
