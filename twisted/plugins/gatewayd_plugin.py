from twisted.application.service import ServiceMaker

serviceMaker = ServiceMaker("gatewayd", "gatewayd.tap", "Signed webhooks in, stored signals out.", "gatewayd")
