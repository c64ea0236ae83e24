package scenarios

import (
	"strings"
	"testing"

	"krustlet.dev/tests/cluster/bed"
)

// An operator's registry configuration: TLS by a private authority, and mirrors.
func TestImagesComeByMirrorsAndAPrivateAuthority(t *testing.T) {
	b := bed.Start(t)
	shared := b.Node(t)
	secure := b.SecureRegistry(t)
	file := bed.Guest(t, "hello.wasm")
	trusting := b.RegistryFlagFor(t, object{"caFiles": []string{secure.Authority}})
	b.Krustlet(t, "push", trusting, file, secure.Host+"/copies/hello:1")

	node := b.StartNode(t, "mirrored", b.RegistryFlagFor(t, object{
		"caFiles":   []string{secure.Authority},
		"plainHTTP": []string{b.Registry()},
		"mirrors": []object{
			{"prefix": "images.example/team", "endpoints": []string{"https://" + secure.Host + "/copies"}, "fallBack": false},
			{"prefix": "images.example/second", "endpoints": []string{
				"https://" + secure.Host + "/nothing", "http://" + b.Registry(),
			}, "fallBack": false},
			{"prefix": b.Registry() + "/renamed", "endpoints": []string{"https://" + secure.Host + "/nothing"}},
		},
	}))
	ns := b.Namespace(t)
	b.Image(t, "hello.wasm")
	b.Push(t, file, b.Registry()+"/renamed/hello:1")
	for name, image := range map[string]string{
		"first":     "images.example/team/hello:1",
		"second":    "images.example/second/hello:1",
		"itself":    b.Registry() + "/renamed/hello:1",
		"unmapped":  secure.Host + "/copies/hello:1",
		"by-digest": "images.example/team/hello@" + idOf(t, b, "hello.wasm"),
	} {
		t.Run(name, func(t *testing.T) {
			same(t, "output", output(t, b, ns, on(node, wasmPod(name, image, "args", name))), name+"\n")
			// It is known by the name that was asked for, not by the mirror's.
			ended := status(get(t, b, ns, name))
			same(t, "image", ended.Image, image)
			repository, _, _ := strings.Cut(strings.TrimSuffix(image, ":1"), "@")
			same(t, "image id", ended.ImageID, repository+"@"+idOf(t, b, "hello.wasm"))
		})
	}

	t.Run("nobody else is asked", func(t *testing.T) {
		create(t, b, ns, on(node, wasmPod("absent", "images.example/team/absent:1")))
		pod := awaitWaiting(t, b, ns, "absent", "ErrImagePull", "ImagePullBackOff")
		if message := waiting(pod).Message; !strings.Contains(message, "no such image") {
			t.Errorf("the mirror is not what was asked: %q", message)
		}
	})
	t.Run("an authority that is not known is refused", func(t *testing.T) {
		create(t, b, ns, on(shared, wasmPod("distrusted", secure.Host+"/copies/hello:1")))
		pod := awaitWaiting(t, b, ns, "distrusted", "RegistryUnavailable", "ErrImagePull", "ImagePullBackOff")
		if message := waiting(pod).Message; !strings.Contains(message, "no secure connection") {
			t.Errorf("the message does not tell of the certificate: %q", message)
		}
		_, err := b.KrustletAs(t, []byte("{}"), "push", b.RegistryFlag(), file, secure.Host+"/copies/hello:2")
		if err == nil || !strings.Contains(err.Error(), "no secure connection") {
			t.Errorf("a push to it: %v", err)
		}
	})
}

// idOf is the digest of a guest's image, which is the same in every registry.
func idOf(t *testing.T, b *bed.Bed, file string) string {
	t.Helper()
	_, digest, _ := strings.Cut(b.ByDigest(t, b.Image(t, file)), "@")
	return digest
}
