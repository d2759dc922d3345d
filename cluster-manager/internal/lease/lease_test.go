package lease

import (
	"testing"
	"time"
)

func TestTable(t *testing.T) {
	table := NewTable()
	now := time.Unix(1_800_000_000, 0)
	if got := table.Away("a", now); got != 0 {
		t.Errorf("a node that was never down is away for %s", got)
	}
	if since := table.Down("a", now); !since.Equal(now) {
		t.Errorf("down since %s, want %s", since, now)
	}
	if got := table.Away("a", now); got <= 0 {
		t.Errorf("away for %s in the moment it went: 0 would mean connected", got)
	}
	later := now.Add(20 * time.Second)
	if since := table.Down("a", later); !since.Equal(now) {
		t.Errorf("the lease began anew at %s", since)
	}
	if got := table.Away("a", later); got != 20*time.Second {
		t.Errorf("away for %s, want 20s", got)
	}
	if got := table.Away("a", now.Add(-time.Hour)); got <= 0 {
		t.Errorf("away for %s by a clock that went back", got)
	}
	if got := table.Away("b", later); got != 0 {
		t.Errorf("another node is away for %s", got)
	}
	table.Up("a")
	if got := table.Away("a", later); got != 0 {
		t.Errorf("up again and away for %s", got)
	}
	table.Down("a", later)
	table.Forget("a")
	if table.Away("a", later.Add(time.Hour)) != 0 {
		t.Error("a forgotten node is away")
	}
}
