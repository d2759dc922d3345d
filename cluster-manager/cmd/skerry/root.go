package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// app is what all commands share.
type app struct {
	streams
	getenv func(string) string

	broker       string
	username     string
	passwordFile string
	tls          tlsFiles
	timeout      time.Duration
	json         bool
	address      address // of the flags, once they are read
}

func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:   "skerry",
		Short: "Look at a cluster of Skerry and command it, over MQTT",
		Long: `skerry is an MQTT client of a cluster manager. It shows jobs and nodes from what the manager retains, and sends
commands and follows them to their end.

Every flag can be given by a variable: --broker is SKERRY_BROKER, and of a command's own the name holds the command's: --label of
skerry job deploy is SKERRY_JOB_DEPLOY_LABEL. So SKERRY_LABEL of an engine on this host changes nothing here.
Exit codes: 0 done; 1 refused, failed or not done in time; 2 wrong usage; 3 broker not reachable; 130 interrupted.`,
		Example:           "  skerry node list\n  skerry --broker tcp://manager:1883 job deploy web --image nginx:1.27 --port 8080:80\n  skerry job status web --json",
		SilenceUsage:      true,
		SilenceErrors:     true,
		DisableAutoGenTag: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.readFlags(cmd) },
	}
	f := root.PersistentFlags()
	f.StringVar(&a.broker, "broker", "tcp://127.0.0.1:1883", "URL of the broker: tcp://, ssl://, ws:// or wss://")
	f.StringVar(&a.username, "username", "", "user name at the broker")
	f.StringVar(&a.passwordFile, "password-file", "", "file that holds the password")
	f.StringVar(&a.tls.ca, "ca-file", "", "PEM file of the authorities to trust (default: the system's)")
	f.StringVar(&a.tls.cert, "cert-file", "", "PEM file of this client's certificate")
	f.StringVar(&a.tls.key, "key-file", "", "PEM file of its private key")
	f.DurationVar(&a.timeout, "connect-timeout", 5*time.Second, "how long the broker may take to answer")
	f.BoolVar(&a.json, "json", false, "print JSON, for programs")
	root.AddCommand(a.jobCommand(), a.nodeCommand(), a.networkCommand(), a.eventsCommand(), a.versionCommand())
	return root
}

// group makes a command that only holds others: alone it prints its help, and it knows no other words.
func group(use, short, example string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Example: example, RunE: func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return cmd.Help()
		}
		return usagef("%s: unknown command %q\nSee %s --help.", cmd.CommandPath(), args[0], cmd.CommandPath())
	}}
	c.AddCommand(commands...)
	return c
}

// running makes what a command does into what cobra calls: an error from there is a failure, not wrong usage.
func running(f func(ctx context.Context, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error { return asFailure(f(cmd.Context(), args)) }
}

// readFlags fills what was not given on the command line from the environment.
func (a *app) readFlags(cmd *cobra.Command) error {
	var err error
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		name := variable(cmd, f)
		value := a.getenv(name)
		if f.Changed || value == "" || f.Name == "help" || err != nil {
			return
		}
		if set := cmd.Flags().Set(f.Name, value); set != nil {
			err = usagef("%s=%q: %w", name, value, set)
		}
	})
	if err != nil {
		return err
	}
	a.address, err = newAddress(a.broker, a.username, a.passwordFile, a.tls, a.timeout)
	return err
}

// variable returns the name of the variable that stands for a flag. What one command alone knows bears that one's name too: SKERRY_LABEL and
// SKERRY_CLUSTER are an engine's and a manager's.
func variable(cmd *cobra.Command, f *pflag.Flag) string {
	name := "skerry " + f.Name
	if cmd.Root().PersistentFlags().Lookup(f.Name) == nil {
		name = cmd.CommandPath() + " " + f.Name
	}
	return strings.ToUpper(strings.NewReplacer("-", "_", " ", "_").Replace(name))
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print the version of this program", Example: "  skerry version", Args: cobra.NoArgs,
		RunE: running(func(context.Context, []string) error {
			if a.json {
				_, err := fmt.Fprintf(a.out, "{\"version\":%q}\n", version)
				return err
			}
			_, err := fmt.Fprintln(a.out, "skerry", version)
			return err
		})}
}

// isTerminal reports whether w is a terminal, and how wide and high that is.
func isTerminal(w io.Writer) (width, height int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, 0, false
	}
	return terminalSize(f)
}

// jsonArray writes payloads as one array, each as it came.
func jsonArray(w io.Writer, raws [][]byte) error {
	var b strings.Builder
	b.WriteString("[")
	for i, raw := range raws {
		if i > 0 {
			b.WriteString(",")
		}
		b.WriteString("\n")
		b.Write(raw)
	}
	if len(raws) > 0 {
		b.WriteString("\n")
	}
	b.WriteString("]\n")
	_, err := io.WriteString(w, b.String())
	return err
}
